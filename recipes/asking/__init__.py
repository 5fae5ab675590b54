# SPDX-License-Identifier: Apache-2.0
"""What `recipes.ask` writes of the photos that it is given."""
