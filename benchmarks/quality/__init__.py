"""Measure PSNR and SSIM of models on data sets, and the effect of the latent prior on the picture."""
