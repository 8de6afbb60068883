"""The result of a stock run in ten lines of text."""

from manyhead.stocks import words
from manyhead.stocks.result import Result


def summarise(result: Result) -> str:
    """Say what was found, how sure it is, and where the report lies."""
    own = result.models[0]
    lines = [
        f"{words.title(result)}  {words.span(result)}, {len(result.splits)} splits, {own.seeds} seed(s), "
        f"preset {result.config.preset}",
        words.verdict(result),
        "",
        f"{'model':<18}{'IC':>8} {'± SE':>7} {'ICIR':>7} {'RankIC':>8} {'right':>7} {'return':>8} "
        f"{'Sharpe':>7} {'drawdown':>9}",
    ]
    for model in result.models:
        book = result.books[model.model].metrics
        lines.append(
            f"{words.name(model.model):<18}{model.ic.estimate:>+8.4f} {model.ic_se:>7.4f} "
            f"{model.icir:>+7.3f} "
            f"{model.rank_ic.estimate:>+8.4f} {words.percent(model.accuracy):>7} "
            f"{words.percent(book['annual_return']):>8} {book['sharpe']:>7.2f} "
            f"{words.percent(book['max_drawdown']):>9}"
        )
    bench = words.equal_weight(result)
    lines.append(
        f"{'equal weight':<18}{'':>8} {'':>7} {'':>7} {'':>8} {words.percent(own.majority):>7} "
        f"{words.percent(bench['annual_return']):>8} {bench['sharpe']:>7.2f} "
        f"{words.percent(bench['max_drawdown']):>9}"
    )
    lines.append(
        "('right': share of right directions; beside equal weight, that of always naming the majority)"
    )
    lines.append(f"report: {result.report}")
    return "\n".join(lines)
