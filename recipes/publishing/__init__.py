# SPDX-License-Identifier: Apache-2.0
"""A trained checkpoint as a repo of the Hub: what goes there, whether it works, its licence and its card."""
