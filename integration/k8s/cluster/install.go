package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/muslin-net/muslin/integration/lab"
)

// installPatience is how long Muslin may take to come up everywhere.
const installPatience = 4 * time.Minute

// ImportMuslin brings the images that make images has written onto all workers; source is the project's directory.
func (c *Cluster) ImportMuslin(ctx context.Context, source string) error {
	archives, err := filepath.Glob(filepath.Join(source, "bin/images/*.tar"))
	if err == nil && len(archives) == 0 {
		err = &lab.Problem{What: "there are no images of Muslin in " + filepath.Join(source, "bin/images"), Do: "build them with make images"}
	}
	if err != nil {
		return err
	}
	return c.Import(ctx, archives...)
}

// Apply applies a kustomization, as an administrator would, and waits until what it defines is known.
func (c *Cluster) Apply(ctx context.Context, overlay string) error {
	// The API refuses resources of a definition that it has just been given for a moment; annotations are too short for CRDs.
	_, err := c.Kubectl(ctx, "", "apply", "--server-side", "--force-conflicts", "-k", overlay)
	return err
}

// Install applies one of Muslin's overlays and waits until all of it, and with it all nodes, are ready.
func (c *Cluster) Install(ctx context.Context, overlay string) error {
	if err := c.Apply(ctx, overlay); err != nil {
		return err
	}
	for _, what := range []string{"deployment/calico-typha", "daemonset/calico-node", "deployment/calico-kube-controllers"} {
		if err := c.AwaitRollout(ctx, what); err != nil {
			return err
		}
	}
	return c.AwaitNodes(ctx)
}

// AwaitRollout returns when a Deployment or DaemonSet of kube-system is as its specification says on all nodes.
func (c *Cluster) AwaitRollout(ctx context.Context, what string) error {
	_, err := c.Kubectl(ctx, "", "rollout", "status", "-n", "kube-system", what, "--timeout", installPatience.String())
	if err != nil {
		pods, _ := c.Kubectl(ctx, "", "get", "pods", "-A", "-o", "wide")
		events, _ := c.Kubectl(ctx, "", "get", "events", "-n", "kube-system", "--sort-by=.lastTimestamp", "--field-selector=type=Warning")
		return fmt.Errorf("%w\n%s\n%s", err, pods, tail(events, 15))
	}
	return nil
}

// AwaitNodes returns when all workers are ready for pods.
func (c *Cluster) AwaitNodes(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "", "wait", "node", "--all", "--for=condition=Ready", "--timeout", installPatience.String())
	return err
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
