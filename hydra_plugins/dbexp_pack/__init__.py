"""The launcher `hydra/launcher=pack`: a sweep's runs train together."""
