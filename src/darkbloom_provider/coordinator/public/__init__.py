"""What anybody may ask about the network, and what its operator watches."""
