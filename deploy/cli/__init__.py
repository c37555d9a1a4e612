"""The command `iiot`: what an operator does to a platform from a shell."""
