"""What consumers read: pieces of an answer as the events of the three dialects.

One event is one chunk on the wire, because the network's coordinator does not look into a chunk
that holds several. `answer.answer_to` picks the shape a request asked for.
"""
