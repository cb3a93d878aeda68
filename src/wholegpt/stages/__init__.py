"""The ways of training, one module each: its data, its objective and its figures over the one training loop."""
