package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func testListOrderAndScope(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	empty, err := c.List(ctx, clusterKind, datastore.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, empty.Items)
	require.NotEmpty(t, empty.Revision)

	for _, name := range []string{"pod--1", "pod", "a.b", "a", "a-b", "pod-10", "default", "node.a", "pod.1"} {
		create(t, c, object(name))
	}
	for _, ns := range []string{"shop-b", "shop", "sho"} {
		for _, name := range []string{"pod--1", "pod", "web.1"} {
			create(t, c, namespaced(ns, name))
		}
	}
	for _, test := range []struct {
		kind string
		opts datastore.ListOptions
		want []string
	}{
		{clusterKind, datastore.ListOptions{}, []string{"a", "a-b", "a.b", "default", "node.a", "pod", "pod--1", "pod-10", "pod.1"}},
		{clusterKind, datastore.ListOptions{NamePrefix: "pod"}, []string{"pod", "pod--1", "pod-10", "pod.1"}},
		{clusterKind, datastore.ListOptions{NamePrefix: "pod-"}, []string{"pod--1", "pod-10"}},
		{clusterKind, datastore.ListOptions{NamePrefix: "a."}, []string{"a.b"}},
		{clusterKind, datastore.ListOptions{NamePrefix: "z"}, []string{}},
		{namespacedKind, datastore.ListOptions{}, []string{
			"sho/pod", "sho/pod--1", "sho/web.1", "shop/pod", "shop/pod--1", "shop/web.1", "shop-b/pod", "shop-b/pod--1", "shop-b/web.1",
		}},
		{namespacedKind, datastore.ListOptions{Namespace: "shop"}, []string{"shop/pod", "shop/pod--1", "shop/web.1"}},
		{namespacedKind, datastore.ListOptions{Namespace: "shop", NamePrefix: "pod"}, []string{"shop/pod", "shop/pod--1"}},
		{namespacedKind, datastore.ListOptions{NamePrefix: "web."}, []string{"sho/web.1", "shop/web.1", "shop-b/web.1"}},
		{namespacedKind, datastore.ListOptions{Namespace: "none"}, []string{}},
	} {
		l, err := c.List(ctx, test.kind, test.opts)
		require.NoError(t, err)
		require.Equal(t, test.want, names(l.Items), "%s %+v", test.kind, test.opts)
		for _, o := range l.Items {
			got, err := c.Get(ctx, api.KeyOf(o))
			require.NoError(t, err)
			require.Equal(t, got, o, "list and get must agree")
		}
	}
}

// testListIPAM checks the kinds whose names are made of CIDRs.
func testListIPAM(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	v4, v6 := netip.MustParsePrefix("10.9.0.4/30"), netip.MustParsePrefix("fd00:77::9905:f003:c7bd:fb00/122")
	near := netip.MustParsePrefix("10.9.0.40/30")
	owner := "host:node-a"
	for _, cidr := range []netip.Prefix{v4, v6, near} {
		b := api.NewIPAMBlock(cidr)
		b.Spec.Affinity = &owner
		b.Spec.SequenceNumber = 1787392800000000005 // more than a double can hold
		create(t, c, b)
		for _, node := range []string{"node-a", "node-ab"} {
			create(t, c, api.NewBlockAffinity(api.AffinityHost, node, cidr, api.AffinityPending))
		}
	}
	create(t, c, api.NewBlockAffinity(api.AffinityVirtual, api.VirtualLoadBalancer, v4, api.AffinityConfirmed))
	h := api.NewIPAMHandle("k8s-pod-network.4F1c")
	h.Spec.Block = map[string]int{"10.9.0.4/30": 1}
	create(t, c, h)

	for _, test := range []struct {
		kind, prefix string
		want         []string
	}{
		{"IPAMBlock", "", []string{"10.9.0.4/30", "10.9.0.40/30", "fd00:77::9905:f003:c7bd:fb00/122"}},
		{"IPAMBlock", "10.9.0.4", []string{"10.9.0.4/30", "10.9.0.40/30"}},
		{"IPAMBlock", "10.9.0.4/", []string{"10.9.0.4/30"}},
		{"BlockAffinity", "host/node-a/", []string{"host/node-a/10.9.0.4/30", "host/node-a/10.9.0.40/30", "host/node-a/fd00:77::9905:f003:c7bd:fb00/122"}},
		{"BlockAffinity", "host/node-a/10.9.0.4/", []string{"host/node-a/10.9.0.4/30"}},
		{"BlockAffinity", "virtual/", []string{"virtual/load-balancer/10.9.0.4/30"}},
		{"IPAMHandle", "k8s-pod-network.", []string{"k8s-pod-network.4F1c"}},
	} {
		l, err := c.List(ctx, test.kind, datastore.ListOptions{NamePrefix: test.prefix})
		require.NoError(t, err)
		require.Equal(t, test.want, names(l.Items), "%s %q", test.kind, test.prefix)
	}
	l, err := c.List(ctx, "BlockAffinity", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, l.Items, 7)

	o, err := c.Get(ctx, api.Key{Kind: "IPAMBlock", Name: v6.String()})
	require.NoError(t, err)
	b := o.(*api.IPAMBlock)
	require.Equal(t, v6.String(), b.Spec.CIDR)
	require.Equal(t, uint64(1787392800000000005), b.Spec.SequenceNumber)
	require.Equal(t, owner, *b.Spec.Affinity)
	b.Spec.Affinity = nil
	b.Spec.SequenceNumber++
	_, err = c.Update(ctx, b)
	require.NoError(t, err)
	o, err = c.Get(ctx, api.Key{Kind: "IPAMBlock", Name: v6.String()})
	require.NoError(t, err)
	require.Nil(t, o.(*api.IPAMBlock).Spec.Affinity)
	require.Equal(t, uint64(1787392800000000006), o.(*api.IPAMBlock).Spec.SequenceNumber)

	o, err = c.Get(ctx, api.Key{Kind: "BlockAffinity", Name: "virtual/load-balancer/10.9.0.4/30"})
	require.NoError(t, err)
	a := o.(*api.BlockAffinity).Spec
	require.Equal(t, api.BlockAffinitySpec{State: api.AffinityConfirmed, Node: "load-balancer", Type: api.AffinityVirtual, CIDR: "10.9.0.4/30"}, a)

	o, err = c.Get(ctx, api.Key{Kind: "IPAMHandle", Name: "k8s-pod-network.4F1c"})
	require.NoError(t, err)
	require.Equal(t, h.Spec, o.(*api.IPAMHandle).Spec)
}

// testListSnapshot lists many objects, whole and in pages, while a writer raises the counter of the first, then that of the last: at any one
// revision they differ by no more than one, and the first is never behind.
func testListSnapshot(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	const total = 400
	var g errgroup.Group
	g.SetLimit(8)
	for i := range total {
		g.Go(func() error {
			_, err := c.Create(ctx, object(fmt.Sprintf("set-%04d", i)))
			return err
		})
	}
	require.NoError(t, g.Wait())

	first, last := key("set-0000"), key(fmt.Sprintf("set-%04d", total-1))
	writing, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		for n := 1; ; n++ {
			for _, k := range []api.Key{first, last} {
				if err := bump(writing, c, k, n); writing.Err() != nil {
					done <- nil
					return
				} else if err != nil {
					done <- err
					return
				}
			}
		}
	}()
	check := func(items []api.Object, revision string) {
		require.Len(t, items, total)
		ahead := count(items[0]) - count(items[total-1])
		require.True(t, ahead == 0 || ahead == 1, "the list mixes revisions: counters differ by %d", ahead)
		for i, o := range items {
			require.Equal(t, fmt.Sprintf("set-%04d", i), o.GetName())
			require.LessOrEqual(t, number(t, o.GetResourceVersion()), number(t, revision))
		}
	}
	for range 6 {
		l, err := c.List(ctx, clusterKind, datastore.ListOptions{})
		require.NoError(t, err)
		check(l.Items, l.Revision)
		var all []api.Object
		l, err = datastore.Pages(ctx, c, clusterKind, datastore.ListOptions{}, func(page []api.Object) error {
			all = append(all, page...)
			return nil
		})
		require.NoError(t, err)
		require.Empty(t, l.Items)
		slices.SortFunc(all, func(a, b api.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
		check(all, l.Revision)
	}
	full := errors.New("no more")
	_, err := datastore.Pages(ctx, c, clusterKind, datastore.ListOptions{}, func([]api.Object) error { return full })
	require.ErrorIs(t, err, full)
	stop()
	require.NoError(t, <-done)
}
