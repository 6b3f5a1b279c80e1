package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// For the pictures in the documentation, of a page that the lab kept: see
// CONTRIBUTING.md.
var (
	savedPage = flag.String("page", "", "status page to make pictures of, an absolute path")
	pictures  = flag.String("pictures", "../docs", "folder for its pictures")
)

// browser is a Chromium that a test drives (WebDriver, by Chromium's driver). It
// runs in the network namespace of the test, from where nothing else can be
// reached.
type browser struct {
	t    *testing.T
	url  string // of the session
	http *http.Client
}

// openBrowser starts a browser that lasts as long as the test.
func (n *netns) openBrowser() *browser {
	n.t.Helper()
	network, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = network.Close() })

	profile := n.t.TempDir()
	// In a process namespace no part of it outlives the test.
	driver := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "chromedriver", "--port=0")
	driver.Env = append(os.Environ(), "HOME="+profile)
	driver.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := driver.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := driver.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = driver.Process.Kill()
		_ = driver.Wait()
	})
	port := ""
	for lines := bufio.NewScanner(stdout); port == "" && lines.Scan(); {
		if m := regexp.MustCompile(`successfully on port (\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			port = m[1]
		}
	}
	if port == "" {
		n.t.Fatal("the driver of the browser does not start")
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()

	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = within(network, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+port)
			return err
		})
		return conn, err
	}}
	n.t.Cleanup(transport.CloseIdleConnections)
	b := &browser{n.t, "http://127.0.0.1:" + port + "/session", &http.Client{Timeout: time.Minute, Transport: transport}}
	var session struct {
		ID string `json:"sessionId"`
	}
	type object map[string]any
	b.call(http.MethodPost, "", object{"capabilities": object{"alwaysMatch": object{
		"goog:loggingPrefs": object{"browser": "ALL"},
		"goog:chromeOptions": object{"args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
			"--user-data-dir=" + profile,
		}},
	}}}, &session)
	b.url += "/" + session.ID
	n.t.Cleanup(func() { b.call(http.MethodDelete, "", object{}, nil) })
	return b
}

// call sends a command to the driver and reads its answer.
func (b *browser) call(method, path string, in, out any) {
	b.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := http.NewRequest(method, b.url+path, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.http.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s %s: %s %v %s", method, path, resp.Status, err, answer)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(answer, &struct{ Value any }{out}); err != nil {
		b.t.Fatalf("%s %s: %v: %s", method, path, err, answer)
	}
}

// devtools sends a command of Chromium's own protocol.
func (b *browser) devtools(command string, params map[string]any, out any) {
	b.t.Helper()
	b.call(http.MethodPost, "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, out)
}

// visit opens a page.
func (b *browser) visit(url string) {
	b.t.Helper()
	b.call(http.MethodPost, "/url", map[string]any{"url": url}, nil)
}

// ask evaluates an expression in the page.
func (b *browser) ask(expression string, out any) {
	b.t.Helper()
	b.call(http.MethodPost, "/execute/sync", map[string]any{"script": "return " + expression, "args": []any{}}, out)
}

// screen makes the window as large as a device's, and prefers light or dark.
func (b *browser) screen(width, height int, scheme string) {
	b.t.Helper()
	b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
	}, nil)
	b.devtools("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]any{{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
}

// picture returns what is on the screen as a PNG.
func (b *browser) picture() []byte {
	b.t.Helper()
	var shot struct{ Data []byte }
	b.devtools("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	return shot.Data
}

// expectSilence expects that the browser has nothing to complain of.
func (b *browser) expectSilence() {
	b.t.Helper()
	var entries []struct{ Level, Message string }
	b.call(http.MethodPost, "/se/log", map[string]any{"type": "browser"}, &entries)
	for _, e := range entries {
		if strings.HasPrefix(e.Message, "chrome://") {
			continue // a page of the browser's own
		}
		b.t.Errorf("on the console: %s %s", e.Level, e.Message)
	}
}

// startBeside runs the exporter with processes beside it, which end with it and may
// hold as many descriptors as the map says.
func (n *netns) startBeside(processes map[string]int) *line {
	n.t.Helper()
	dir := n.t.TempDir()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		n.t.Fatal(err)
	}
	var script strings.Builder
	var paths []string
	for name, limit := range processes {
		path := filepath.Join(dir, name)
		if err := os.Symlink(sleep, path); err != nil {
			n.t.Fatal(err)
		}
		paths = append(paths, path)
		fmt.Fprintf(&script, "(ulimit -n %d; exec setpriv --pdeathsig KILL \"$1\" 300) & shift\n", limit)
	}
	e := connect(start(n.t, func(cmd *exec.Cmd) { asHost(cmd, script.String(), paths...) }))
	n.until("every process has its name", func() bool {
		p := e.scrape()
		for name := range processes {
			if _, ok := p[fmt.Sprintf("sockpressure_process_open_file_descriptors{process=%q}", name)]; !ok {
				return false
			}
		}
		return true
	})
	return e
}

// pressure fills an accept queue and most of the ephemeral ports, and leaves
// sockets in several states.
func (n *netns) pressure() {
	n.t.Helper()
	at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	n.limitPorts()
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "100")
	n.listen(at("127.0.0.1", 443), 40)
	for range 41 { // a queue of 40 takes one more
		n.dial(at("127.0.0.3", 0), at("127.0.0.1", 443))
	}
	n.listen(at("::1", 8080), 128)
	for range 31 {
		n.dial(at("::1", 0), at("::1", 8080))
	}
	n.listen(at("127.0.0.1", 22), 0)
	pairs := n.pairs(n.listen(at("127.0.0.2", 5432), 200), at("127.0.0.4", 0), at("127.0.0.2", 5432), 127)
	for _, p := range pairs[:30] {
		n.close(p.client)
		n.poll(p.server, unix.POLLRDHUP)
		n.close(p.server)
	}
	for _, p := range pairs[30:42] {
		n.shutdown(p.client)
	}
}

// TestBrowser shows the status page of a host under load to a browser, on a desk
// and on a telephone, by day and by night.
func TestBrowser(t *testing.T) {
	t.Parallel()
	n := enterNetns(t, "chromium", "chromedriver", "setpriv")
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		t.Fatal("unshare:", err)
	}
	if err := unix.Sethostname([]byte("node-7")); err != nil {
		t.Fatal("sethostname:", err)
	}
	b := n.openBrowser()
	n.pressure()
	e := n.startBeside(map[string]int{"postgres": 8, "nginx": 16, "sshd": 1024})

	for name, c := range map[string]struct {
		width, height int
		scheme        string
		colour        string
		picture       bool
	}{
		"status-light": {1000, 800, "light", "rgb(255, 255, 255)", true},
		"status-dark":  {1000, 800, "dark", "rgb(20, 24, 28)", true},
		"status-phone": {390, 844, "light", "rgb(255, 255, 255)", true},
		"small phone":  {320, 640, "dark", "rgb(20, 24, 28)", false},
	} {
		b.screen(c.width, c.height, c.scheme)
		b.visit(e.url + "/")
		b.expectBars(e.scrape())
		var page struct {
			Width, Resources, Scripts float64
			Title, Colour             string
		}
		b.ask(`{
			width: document.documentElement.scrollWidth,
			resources: performance.getEntriesByType("resource").length,
			scripts: document.scripts.length,
			title: document.title,
			colour: getComputedStyle(document.body).backgroundColor,
		}`, &page)
		if page.Width > float64(c.width) {
			t.Errorf("%s: the page is %v wide on a screen of %d", name, page.Width, c.width)
		}
		if page.Resources != 0 || page.Scripts != 0 {
			t.Errorf("%s: the page loads %v resources and has %v scripts", name, page.Resources, page.Scripts)
		}
		if !strings.HasPrefix(page.Title, "1 critical, 1 warning") || !strings.HasSuffix(page.Title, " · node-7 · sockpressure_exporter") {
			t.Errorf("%s: the title is %q", name, page.Title)
		}
		if page.Colour != c.colour {
			t.Errorf("%s: the page is %s, not %s", name, page.Colour, c.colour)
		}
		b.expectSilence()
		if *savedPage != "" && c.picture {
			b.visit("file://" + *savedPage)
			if err := os.WriteFile(filepath.Join(*pictures, name+".png"), b.picture(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.expectRefresh(e)
	b.expectSilence()
}

// expectBars expects one bar for each saturation_ratio, as long as its value,
// the longest first.
func (b *browser) expectBars(p page) {
	b.t.Helper()
	var bars []struct {
		Name, Class     string
		Percent, Length float64
	}
	b.ask(`[...document.querySelectorAll(".limit")].map(limit => ({
		name: limit.querySelector("h3").textContent,
		class: limit.className,
		percent: parseFloat(limit.querySelector(".percent").lastChild.textContent),
		length: limit.querySelector(".bar rect").getBoundingClientRect().width / limit.querySelector(".bar").getBoundingClientRect().width,
	}))`, &bars)
	got := map[string]float64{}
	above := math.Inf(1)
	for _, bar := range bars {
		series := fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", bar.Name)
		got[series] = bar.Length
		// Memory moves between two readings.
		if want := p.value(b.t, series); math.Abs(bar.Length-want) > 0.03 {
			b.t.Errorf("the bar of %s is %v long, and /metrics has %v", bar.Name, bar.Length, want)
		}
		if math.Abs(bar.Percent/100-bar.Length) > 0.001 {
			b.t.Errorf("beside the bar of %s, which is %v long, stands %v %%", bar.Name, bar.Length, bar.Percent)
		}
		if bar.Length > above+1e-6 {
			b.t.Errorf("%s stands below a shorter bar", bar.Name)
		}
		above = bar.Length
		want := map[string]string{"accept_queue": "limit critical", "ephemeral_ports": "limit warning"}[bar.Name]
		if want != "" && bar.Class != want {
			b.t.Errorf("%s is of the class %q, not %q", bar.Name, bar.Class, want)
		}
	}
	if want := p.with("sockpressure_saturation_ratio"); !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		b.t.Errorf("bars for %v, and /metrics has %v", slices.Sorted(maps.Keys(got)), want)
	}
}

// expectRefresh expects that the page is read again and stays where it was, and
// that it can be told not to.
func (b *browser) expectRefresh(e *line) {
	b.t.Helper()
	type view struct{ Read, Top float64 }
	look := func() (v view) {
		b.ask(`{read: performance.timeOrigin, top: scrollY}`, &v)
		return v
	}
	b.visit(e.url + "/")
	b.ask(`window.scrollTo(0, 500)`, nil)
	first := look()
	second := first
	for end := time.Now().Add(patience); second.Read == first.Read && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		second = look()
	}
	if second.Read == first.Read || first.Top != 500 || second.Top != first.Top {
		b.t.Errorf("the page was read at %v and stood at %v, then %v and %v", first.Read, first.Top, second.Read, second.Top)
	}
	b.visit(e.url + "/?still")
	var refreshes float64
	b.ask(`document.querySelectorAll("meta[http-equiv=refresh]").length`, &refreshes)
	if refreshes != 0 {
		b.t.Error("the page that stands still is refreshed")
	}
}

// TestHostileNames expects that the name of a process is shown as it is.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	n := enterNetns(t, "chromium", "chromedriver", "setpriv")
	b := n.openBrowser()
	for _, name := range []string{"<script>alert()", `"><img src=x>`, "{{1}}&lt;b&amp;"} {
		e := n.startBeside(map[string]int{name: 16}) // not the worst, which TestBrowser looks at
		b.visit(e.url + "/")
		var shown []string
		b.ask(`[...document.querySelectorAll(".list th bdi")].map(e => e.textContent)`, &shown)
		if !slices.Contains(shown, name) {
			t.Errorf("%q is not among %q", name, shown)
		}
		var elements float64
		b.ask(`document.querySelectorAll("script, img").length`, &elements)
		if elements != 0 {
			t.Errorf("%q became %v elements", name, elements)
		}
	}
	b.expectSilence()
}
