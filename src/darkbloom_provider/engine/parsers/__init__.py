"""From a model's text to answer, thoughts and tool calls: one small pure parser per family.

A parser takes text in pieces of any cut and gives the same result for every cut. It never raises:
what looks like a tool call but is none is given out as content, so nothing a model wrote is lost.
It holds back what may turn out to be the start of a marker, white space that may border one, and a
tool call until it is whole: half a call cannot be taken back, and must not be carried out. Calls
that a model considers in its thoughts are thoughts. Where a request offers no tools there are no
calls.

`choice.choose` finds a model's family; nothing here imports MLX.
"""
