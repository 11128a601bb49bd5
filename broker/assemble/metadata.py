"""Catalogue values to model inputs."""

from __future__ import annotations

from typing import Final

METADATA_FEATURES: Final[tuple[str, ...]] = (
    "mean_vmag",
    "phot_g_mean_mag", "e_phot_g_mean_mag", "phot_bp_mean_mag", "e_phot_bp_mean_mag",
    "phot_rp_mean_mag", "e_phot_rp_mean_mag", "bp_rp",
    "parallax", "parallax_error", "parallax_over_error",
    "pmra", "pmra_error", "pmdec", "pmdec_error",
    "j_mag", "e_j_mag", "h_mag", "e_h_mag", "k_mag", "e_k_mag",
    "w1_mag", "e_w1_mag", "w2_mag", "e_w2_mag", "w3_mag", "w4_mag",
    "j_k", "w1_w2", "w3_w4", "pm", "ruwe", "cos_l", "sin_b",
)  # fmt: skip
"""AstroM3's 34 metadata columns (arXiv 2411.08842, section 3.3), raw values before standardisation."""
