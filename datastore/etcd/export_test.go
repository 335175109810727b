package etcd

import "time"

// SetSlowAfter makes consumers count as slow sooner.
func (c *Client) SetSlowAfter(d time.Duration) { c.slowAfter = d }
