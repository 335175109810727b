// Package table prints resources as the tables that users of Calico know (spec §8.1). It is pure but for the writer.
package table

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/muslin-net/muslin/api"
)

// Options say how to print.
type Options struct {
	Wide bool
	// Namespaces adds a first column with the namespace, for kinds that have one.
	Namespaces bool
	// DefaultAS is the AS number of nodes without their own.
	DefaultAS api.ASNumber
}

// column is one column of a table.
type column struct {
	title string
	value func(o api.Object, opts Options) string
}

// Print writes the table of objects of one kind.
func Print(w io.Writer, kind api.Kind, objects []api.Object, opts Options) error {
	columns := columnsOf(kind, opts)
	rows := make([][]string, 0, len(objects)+1)
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	rows = append(rows, titles)
	for _, o := range sorted(kind, objects) {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = c.value(o, opts)
		}
		rows = append(rows, cells)
	}
	return Rows(w, rows)
}

// Rows writes rows with aligned columns, the first being the titles, and an empty line after them.
func Rows(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	for _, cells := range rows {
		for _, c := range cells {
			fmt.Fprint(t, c, "\t")
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// Boxed writes rows framed by + - |, with titles in capitals and cells centred, as `node status` has it.
func Boxed(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, cells := range rows {
		for i, c := range cells {
			widths[i] = max(widths[i], len(c))
		}
	}
	rule := make([]string, len(widths))
	for i, n := range widths {
		rule[i] = strings.Repeat("-", n+2)
	}
	line := "+" + strings.Join(rule, "+") + "+"
	fmt.Fprintln(w, line)
	for r, cells := range rows {
		fmt.Fprint(w, "|")
		for i, c := range cells {
			if r == 0 {
				c = centred(strings.ToUpper(c), widths[i])
			}
			fmt.Fprintf(w, " %-*s |", widths[i], c)
		}
		fmt.Fprintln(w)
		if r == 0 {
			fmt.Fprintln(w, line)
		}
	}
	fmt.Fprintln(w, line)
}

func centred(s string, width int) string {
	left := (width - len(s)) / 2
	return strings.Repeat(" ", left) + s
}

// sorted is in the order of names, tiers in that of evaluation.
func sorted(kind api.Kind, objects []api.Object) []api.Object {
	return slices.SortedStableFunc(slices.Values(objects), func(a, b api.Object) int {
		if kind.Name == "Tier" {
			if c := cmp.Compare(tierOrder(a), tierOrder(b)); c != 0 {
				return c
			}
		}
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}
