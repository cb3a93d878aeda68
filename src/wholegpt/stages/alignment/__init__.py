"""Learning from preferences and rewards: one module for each way of training."""
