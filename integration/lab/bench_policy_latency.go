package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/felix/client/cni"
)

const (
	// policySamples is how often a policy is made and changed for one figure with a target, fewSamples for any other.
	policySamples, fewSamples = 30, 15
	// wiredAtOnce is how many endpoints of a node are made at a time: felix tells typha of all endpoints there are with each
	// that comes, of many that come together once.
	wiredAtOnce = 50
	// targetSize is how many endpoints the targets are for.
	targetSize = 500
	// policyApps is how many applications the cluster's policies are about, each selecting one, and letting in another.
	policyApps = 500
	// localApps is how many of them have pods on a node: its pods are their replicas.
	localApps = 50
	// policyQuiet is how long a node's rules have not changed when a change is taken for complete, and read to find out whether
	// it is.
	policyQuiet = 20 * time.Millisecond
)

// crowdSizes are how many endpoints the nodes have that are measured, of each driver.
func crowdSizes() []int { return []int{100, targetSize, 1000} }

// crowd is a node with so many endpoints under a driver.
type crowd struct {
	ruleDriver
	node  string
	size  int
	watch *rulesWatch
}

// policyCluster is what latency is measured on.
type policyCluster struct {
	*bench
	lab    *Lab
	store  *store
	crowds []*crowd
	serial int // numbers policies
}

// policyLatency measures the time from the beginning of a write to the datastore until the kernel has what follows from it,
// for all endpoints: for a new policy on all endpoints of a node, and for a changed rule of one.
func (b *bench) policyLatency(ctx context.Context) (err error) {
	c := &policyCluster{bench: b}
	defer func() { err = errors.Join(err, c.close(context.WithoutCancel(ctx))) }()
	if err := c.up(ctx); err != nil {
		return err
	}
	policies := c.clusterPolicies(1000)
	if err := c.store.put(ctx, policies...); err != nil {
		return err
	}
	for _, n := range c.crowds {
		if err := c.measure(ctx, n, ""); err != nil {
			return fmt.Errorf("%s: %w", n.node, err)
		}
	}
	more := c.clusterPolicies(10_000)[len(policies):]
	if err := c.store.put(ctx, more...); err != nil {
		return err
	}
	policies = append(policies, more...)
	for _, n := range c.crowds {
		if n.size == targetSize {
			continue
		}
		if err := c.measure(ctx, n, ".policies10k"); err != nil {
			return fmt.Errorf("%s with 10,000 policies: %w", n.node, err)
		}
	}
	for _, n := range c.crowds {
		if n.size != targetSize {
			continue
		}
		if err := c.fromNothing(ctx, n, policies); err != nil {
			return fmt.Errorf("%s from nothing: %w", n.node, err)
		}
	}
	return nil
}

// up brings up a cluster with a node for each crowd.
func (c *policyCluster) up(ctx context.Context) error {
	var y strings.Builder
	fmt.Fprintf(&y, "subnets: [{name: flat, prefixes: [10.56.0.0/24]}]\nnodes:\n- {name: master, addresses: [10.56.0.9], processes: [%s]}\n", ProcessTypha)
	for _, d := range ruleDrivers() {
		for _, size := range crowdSizes() {
			n := &crowd{ruleDriver: d, node: fmt.Sprintf("%s-%d", d.name, size), size: size}
			c.crowds = append(c.crowds, n)
			fmt.Fprintf(&y, "- name: %s\n  addresses: [10.56.0.%d]\n  env:\n", n.node, 10+len(c.crowds))
			for k, v := range d.env {
				fmt.Fprintf(&y, "    %s: %q\n", k, v)
			}
		}
	}
	fmt.Fprintln(&y, "pools: [{cidr: 192.168.0.0/16, vxlanMode: Always}]\nbackend: vxlan")
	t, err := ParseTopology("many endpoints on few nodes", []byte(y.String()))
	if err != nil {
		return err
	}
	began := time.Now()
	c.lab, err = Up(ctx, Options{Name: "bench-crowds", StateDir: filepath.Join(c.dir, "crowds"), BinDir: c.BinDir, Topology: t, Attached: true})
	if err != nil {
		return err
	}
	if c.store, err = openStore(ctx, c.lab, "master"); err != nil {
		return err
	}
	for _, n := range c.crowds {
		if n.watch, err = watchRules(ctx, c.lab, n.node); err != nil {
			return err
		}
	}
	g, filling := errgroup.WithContext(ctx)
	for _, n := range c.crowds {
		g.Go(func() error {
			if err := c.fill(filling, n); err != nil {
				return fmt.Errorf("endpoints of %s: %w", n.node, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(c.Log, "endpoints are made after %.1f s\n", time.Since(began).Seconds())
	return nil
}

func (c *policyCluster) close(ctx context.Context) error {
	var errs []error
	for _, n := range c.crowds {
		if n.watch != nil {
			errs = append(errs, n.watch.close())
		}
	}
	if c.store != nil {
		errs = append(errs, c.store.close())
	}
	if c.lab != nil {
		errs = append(errs, c.lab.Down(ctx))
	}
	return errors.Join(errs...)
}

// fill makes a node's endpoints, as the CNI plugin has felix make them. Many share a network namespace for their other ends:
// what counts is the node's.
func (c *policyCluster) fill(ctx context.Context, n *crowd) error {
	felix := cni.Felix{Socket: filepath.Join(nodeDir(c.lab.dir, n.node), "run/calico/cni.sock")}
	g, ctx := errgroup.WithContext(ctx)
	for worker := range wiredAtOnce {
		g.Go(func() error {
			space := fmt.Sprintf("crowd-%d", worker) // one at a time is wired in it: each moves its default route
			if _, err := c.lab.Run(ctx, n.node, "ip", "netns", "add", space); err != nil {
				return err
			}
			for i := worker; i < n.size; i += wiredAtOnce {
				name := fmt.Sprintf("%s-%d", n.node, i)
				_, err := felix.Add(ctx, cni.Attachment{Network: "k8s-pod-network", ContainerID: name, Interface: fmt.Sprintf("eth%d", i)},
					filepath.Join(netnsDir, space), map[string]string{"K8S_POD_NAMESPACE": defaultNamespace, "K8S_POD_NAME": name},
					cni.Config{IPv4: true, PolicyWait: stepDeadline, RequirePolicy: true, Labels: map[string]string{
						"crowd": n.node, "app": fmt.Sprintf("app%d", i%localApps), "slot": fmt.Sprintf("%s.%d", n.node, i),
					}})
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// clusterPolicies are the first so many policies of the cluster.
func (c *policyCluster) clusterPolicies(n int) (out []api.Object) {
	for i := range n {
		p := &api.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: defaultNamespace, Name: fmt.Sprintf("p%d", i)}}
		order := float64(100 + i)
		p.Spec.Tier, p.Spec.Order, p.Spec.Types = api.TierDefault, &order, []api.PolicyType{api.Ingress}
		p.Spec.Selector = fmt.Sprintf("app == 'app%d'", i%policyApps)
		p.Spec.Ingress = []api.Rule{overTCP(api.Allow, api.EntityRule{Selector: fmt.Sprintf("app == 'app%d'", (i+1)%policyApps)}, uint16(1000+i))}
		out = append(out, p)
	}
	return out
}

// policy is one on all endpoints of a node, which lets in what comes to a port.
func (n *crowd) policy(name string, port uint16) *api.GlobalNetworkPolicy {
	return globalPolicy(name, 10, fmt.Sprintf("crowd == '%s'", n.node), []api.Rule{overTCP(api.Allow, api.EntityRule{}, port)}, nil)
}

// measure makes, changes and removes policies on all endpoints of a node.
func (c *policyCluster) measure(ctx context.Context, n *crowd, suffix string) error {
	var made, changed []float64
	samples := fewSamples
	if n.size == targetSize {
		samples = policySamples
	}
	for range samples {
		c.serial++
		p := n.policy(fmt.Sprintf("new-%d", c.serial), 20_000)
		took, err := c.timed(ctx, n, func() error { _, err := c.store.Create(ctx, p); return err }, func() error { return c.leads(ctx, n, p.Name) })
		if err != nil {
			return fmt.Errorf("new policy: %w", err)
		}
		made = append(made, ms(took))
		_, err = c.timed(ctx, n, func() error { return c.remove(ctx, p) }, func() error { return c.gone(ctx, n, p.Name) })
		if err != nil {
			return fmt.Errorf("policy that goes: %w", err)
		}
	}
	c.serial++
	p := n.policy(fmt.Sprintf("changed-%d", c.serial), 20_000)
	stored := []api.Object{p}
	write := func() error { return c.store.put(ctx, stored...) }
	if _, err := c.timed(ctx, n, write, func() error { return c.leads(ctx, n, p.Name) }); err != nil {
		return fmt.Errorf("policy to change: %w", err)
	}
	for i := range samples {
		port := uint16(20_001 + i)
		p = stored[0].(*api.GlobalNetworkPolicy)
		p.Spec.Ingress = []api.Rule{overTCP(api.Allow, api.EntityRule{}, port)}
		stored[0] = p
		took, err := c.timed(ctx, n, write, func() error {
			text, err := n.ofPolicy(ctx, c.lab, n.node, p.Name)
			if err == nil && !strings.Contains(text, fmt.Sprint(port)) {
				err = fmt.Errorf("port %d is not in %q", port, text)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("changed policy: %w", err)
		}
		changed = append(changed, ms(took))
	}
	if err := c.leads(ctx, n, p.Name); err != nil {
		return err
	}
	if _, err := c.timed(ctx, n, func() error { return c.remove(ctx, p) }, func() error { return c.gone(ctx, n, p.Name) }); err != nil {
		return fmt.Errorf("policy that goes: %w", err)
	}
	name := func(what string) string { return fmt.Sprintf("policy.%s%d.%s%s", what, n.size, n.name, suffix) }
	c.figure(name("new"), quantile(made, 0.99), "ms", 0, "")
	c.figure(name("new")+".p50", median(made), "ms", 0, "")
	change := name("change")
	if n.size == targetSize {
		change = fmt.Sprintf("policy.change.%s%s", n.name, suffix) // as the target is called
	}
	c.figure(change, median(changed), "ms", 0, "")
	c.figure(change+".p99", quantile(changed, 0.99), "ms", 0, "")
	return nil
}

// timed does a write and returns how long after its beginning the node's kernel has what is says.
func (c *policyCluster) timed(ctx context.Context, n *crowd, write, is func() error) (time.Duration, error) {
	began := time.Now()
	if err := write(); err != nil {
		return 0, err
	}
	return n.watch.live(ctx, began, policyQuiet, is)
}

func (c *policyCluster) remove(ctx context.Context, p *api.GlobalNetworkPolicy) error {
	_, err := c.store.Delete(ctx, api.Key{Kind: "GlobalNetworkPolicy", Name: p.Name}, datastore.Precondition{})
	return err
}

// leads tells whether packets to each endpoint of a node come to a policy.
func (c *policyCluster) leads(ctx context.Context, n *crowd, policy string) error {
	reach, err := n.reach(ctx, c.lab, n.node)
	if err == nil && reach["gnp/"+policy] != n.size {
		err = fmt.Errorf("packets to %d endpoints come to policy %s", reach["gnp/"+policy], policy)
	}
	return err
}

func (c *policyCluster) gone(ctx context.Context, n *crowd, policy string) error {
	text, err := n.ofPolicy(ctx, c.lab, n.node, policy)
	if err == nil && text != "" {
		err = fmt.Errorf("policy %s is still there", policy)
	}
	return err
}

// fromNothing measures how long a node takes whose kernel and disk have nothing, from the start of felix on, to program all
// policies of the cluster, of which each is on one of its endpoints.
func (c *policyCluster) fromNothing(ctx context.Context, n *crowd, policies []api.Object) error {
	for i, o := range policies {
		p := o.(*api.NetworkPolicy)
		p.Spec.Selector = fmt.Sprintf("slot == '%s.%d'", n.node, i%n.size)
		policies[i] = p
	}
	if err := c.lab.Kill(ctx, n.node, ProcessFelix); err != nil {
		return err
	}
	if err := c.store.put(ctx, policies...); err != nil {
		return err
	}
	if _, err := c.lab.Run(ctx, n.node, "sh", "-ec", "rm -f /var/lib/calico/felix/view*; "+n.forget); err != nil {
		return err
	}
	if err := c.awaitSilence(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := c.lab.Start(ctx, n.node, ProcessFelix); err != nil {
		return err
	}
	took, err := n.watch.live(ctx, began, 10*policyQuiet, func() error {
		reach, err := n.reach(ctx, c.lab, n.node)
		if err != nil {
			return err
		}
		for i := range policies {
			if id := fmt.Sprintf("np/%s/p%d", defaultNamespace, i); reach[id] != 1 {
				return fmt.Errorf("packets to %d endpoints come to policy %s", reach[id], id)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.figure("policy.nothing10k."+n.name, took.Seconds(), "s", 0, "")
	return nil
}

// awaitSilence returns when no node has changed its rules for a second.
func (c *policyCluster) awaitSilence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	_, err := eventually(ctx, func() (struct{}, error) {
		for _, n := range c.crowds {
			if time.Since(n.watch.changed()) < time.Second {
				return struct{}{}, fmt.Errorf("the rules of %s still change", n.node)
			}
		}
		return struct{}{}, nil
	})
	return err
}
