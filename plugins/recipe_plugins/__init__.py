"""The built-in components: one folder a stage, plus the families they share. Loaded like any other plugin."""
