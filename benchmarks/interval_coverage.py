"""Simulate how often the package's 95 % intervals over videos contain the true mean.

    python benchmarks/interval_coverage.py

Each trial draws the values of n videos from a known distribution and checks whether the interval contains its mean.
The distributions are Beta(8, 3) (Dice-like), 1 - Beta(0.8, 8) (accuracy-like, skewed), and log-normal with sigma 1
(HD95-like).
"""

import argparse

import numpy as np

from surgenet_hf.evaluation.statistics import MIN_VIDEOS, bootstrap_interval, mean_draws, student_interval

DISTRIBUTIONS = {
    "Dice-like": (lambda rng, n: rng.beta(8, 3, n), 8 / 11),
    "accuracy-like": (lambda rng, n: 1 - rng.beta(0.8, 8, n), 1 - 0.8 / 8.8),
    "HD95-like": (lambda rng, n: rng.lognormal(0, 1, n), np.exp(0.5)),
}
VIDEOS = (5, 7, 10, 20, 40)


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """Compute the plain percentile interval, for comparison."""
    return tuple(np.quantile(draws, [0.025, 0.975]))


def coverage(draw, truth: float, videos: int, trials: int, resamples: int) -> list[float]:
    """Compute the fraction of trials whose interval contains the true mean.

    Returns:
        Fractions of Student's t, expanded percentiles, and plain percentiles.
    """
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for trial in range(trials):
        values = draw(rng, videos)
        draws = mean_draws(values, resamples, seed=trial)
        student, expanded = student_interval(values), bootstrap_interval(draws, videos)
        bounds = [(student.low, student.high), (expanded.low, expanded.high), percentile_interval(draws)]
        hits += [low <= truth <= high for low, high in bounds]
    return (hits / trials).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000, help="number of simulated test splits per row")
    parser.add_argument("--resamples", type=int, default=2000, help="number of bootstrap resamples per trial")
    args = parser.parse_args()
    print(f"{'':16}{'videos':>8}{'Student':>10}{'expanded':>10}{'percentile':>12}")
    for name, (draw, truth) in DISTRIBUTIONS.items():
        for videos in VIDEOS:
            assert videos >= MIN_VIDEOS
            shares = coverage(draw, truth, videos, args.trials, args.resamples)
            print(
                f"{name:16}{videos:>8}"
                + "".join(f"{share:>{w}.3f}" for share, w in zip(shares, (10, 10, 12), strict=True))
            )


if __name__ == "__main__":
    main()
