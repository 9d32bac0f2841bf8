"""Evaluation: metrics, evaluators, figures and reports."""
