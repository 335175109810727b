package kubernetes

import (
	"context"

	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
)

// Native tells whether the cluster keeps objects as projectcalico.org/v3; if not, as crd.projectcalico.org/v1.
func (c *Client) Native(ctx context.Context) (bool, error) {
	l, err := c.found(ctx, opList, api.Key{Kind: "ClusterInformation", Name: "*"})
	if err != nil {
		return false, err
	}
	return !l.classic, nil
}

// REST is how the API server is reached, for those who need more of it.
func (c *Client) REST() *rest.Config { return rest.CopyConfig(c.rest) }
