"""DINO pretraining (Caron et al. 2021): head, loss, schedules, student, and teacher."""
