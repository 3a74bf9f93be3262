"""Recipes: what they may say (schema), and reading them from presets, files and `--set`."""
