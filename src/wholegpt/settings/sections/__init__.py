"""The sections of the configuration, by topic: the settings, their checks, and the defaults derived from others."""
