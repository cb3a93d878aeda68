"""The one training loop and its parts: optimizers, schedules, objectives, state, callbacks."""
