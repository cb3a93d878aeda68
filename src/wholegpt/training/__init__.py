"""The one training loop and its parts: optimiser, schedules, objectives, state, callbacks."""
