# SPDX-License-Identifier: Apache-2.0
"""Answering questions with a trained model, and what came of it."""
