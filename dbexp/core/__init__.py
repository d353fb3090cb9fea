"""The ground: errors, files, the store, hashes, devices. Nothing here knows of experiments."""
