"""Speed and quality of adapruner beside its rivals: suites, tables, and their tests."""
