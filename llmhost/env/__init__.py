"""Builds, verifies and reads engine environments."""
