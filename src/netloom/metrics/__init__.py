"""Scores of predictions, how far chance moves them, how honest confidences are."""
