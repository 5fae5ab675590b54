# SPDX-License-Identifier: Apache-2.0
"""Raw files as others wrote them: scans, recordings, RoomPlan exports, meshes. One module per format."""
