"""The embedded data set: what its clips show, how they are drawn, and a judge of videos."""
