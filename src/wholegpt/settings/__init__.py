"""All settings: defaults, checks, presets, and conversion from and to YAML. Imports no PyTorch."""
