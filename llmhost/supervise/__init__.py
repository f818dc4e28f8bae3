"""Runs the plan: supervisord and the guards of the engines, their states and their logs."""
