"""Every setting of a run: its default, its checks, and its form as YAML. Imports no torch."""
