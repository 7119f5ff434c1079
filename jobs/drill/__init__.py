"""The fault drill: a run that is harmed at random, and must end like one that was not."""
