"""Pictures of a fusion. Matplotlib is imported when something is drawn."""
