"""The compute-optimal frontier, measured on the zoo: what more compute at test time buys."""
