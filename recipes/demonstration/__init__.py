# SPDX-License-Identifier: Apache-2.0
"""What `recipes.demo` records of its run, and what the docs show of it."""
