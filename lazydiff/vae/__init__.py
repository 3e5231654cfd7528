"""VAEs that compute what an edit needs, as they are: nothing is trained, nothing replaced."""
