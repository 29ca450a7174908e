"""PSNR and SSIM of models on data sets, and what the latent prior does to the picture."""
