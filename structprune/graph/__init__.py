"""The neutral graph that both front ends lower to, and what a decision about it is."""
