"""What a session costs, side by side with others and with the bare back end: `make bench`.

`docs/performance.md` tells what is measured, how, and what the figures do not show.

- `payloads`: the sessions that are stored.
- `scenarios`: what a request does with its session.
- `calling`: applications called in this process, without a socket.
- `backends/`: one file for each: the bare driver's commands, and the URL of the store.
- `peers/`: one file for each other session layer.
- `measuring`: paired repeats, and what is made of them.
- `capacity`: memory per session, pauses, a sweep's call.
- `report`: tables, targets, JSON.
"""
