"""From graph to plan: what runs together, and the plan that an encoder turns into programs."""
