"""What a trained model is worth: its loss on prepared text, and tasks of lm_eval that others report too."""
