"""The schema of a config, its checks, and the words of the command line."""
