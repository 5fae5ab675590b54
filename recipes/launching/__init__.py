# SPDX-License-Identifier: Apache-2.0
"""What `recipes.launch` is made of: caches, checks, the plan of batch and memory, the dry run, the child process."""
