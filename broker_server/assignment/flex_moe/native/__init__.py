"""The C++ half of the solver `prices`: what is done once for each client, or each pair of experts.

Import from `broker_server.assignment.flex_moe.native._prices`; `_prices.pyi` says what there is.
"""
