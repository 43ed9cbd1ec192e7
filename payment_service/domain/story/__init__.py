"""The story of one payment in plain sentences, for people who answer for it."""
