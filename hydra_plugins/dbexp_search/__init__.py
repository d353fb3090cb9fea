"""The sweeper of searches: Optuna proposes what runs, `hydra/sweeper=optuna`."""
