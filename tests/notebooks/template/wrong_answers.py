"""A plausible wrong answer to each exercise of the template: its check must refuse it."""

WRONG = {
    # the variance of the mean
    1: """
def my_error(var, n):
    return var / n
""",
    # forgets the variance
    2: "my_draws = 10_000",
    # the square of the average
    3: """
def my_average(a):
    return a**2 / 4
""",
    # a variance too low
    4: "my_fourth = 2",
}
