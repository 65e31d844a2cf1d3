"""Files of strangers: opened safely, probed, decoded, displayed as meant, checked, and written."""
