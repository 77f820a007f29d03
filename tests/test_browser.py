"The built pages in a real browser: no errors, no dead links, tables that fit and sort, what a keyboard and a screen reader need"
import json,re,shutil,threading
from pathlib import Path
from urllib.parse import unquote,urldefrag
import pytest
from bs4 import BeautifulSoup
from mils.live import fetch_npm
from mils.serve import site_server
from mils.site import build_site

webdriver = pytest.importorskip('selenium.webdriver')
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
def installed(*names): return next(filter(None, map(shutil.which, names)), None)
browser,driver = installed('chromium','google-chrome','chromium-browser'),installed('chromedriver')
pytestmark = [pytest.mark.skipif(not (browser and driver), reason='no Chromium with its driver on this machine'),
              pytest.mark.xdist_group('browser')]          # one worker builds the site and starts the browser
repo = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Address of the site, built from stored outputs, and its folder"
    out = tmp_path_factory.mktemp('site')/'pages'
    build_site(out, execute=False, root=repo)
    with site_server(out) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{s.server_port}',out
        s.shutdown()

@pytest.fixture(scope='module')
def chrome():
    o = webdriver.ChromeOptions()
    o.binary_location = browser
    for a in ('--headless=new','--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--window-size=1280,900'): o.add_argument(a)
    o.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    d = webdriver.Chrome(options=o, service=webdriver.ChromeService(driver))
    yield d
    d.quit()

def pages(out): return sorted(p.relative_to(out).as_posix() for p in out.rglob('*.html'))
def of_report(out): return ['index.html',*(p for p in pages(out) if p.startswith('report/'))]

@pytest.fixture
def screen(chrome):
    "Sets width, theme and medium, for one test"
    def change(width=1280, theme='light', media=''):
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width<500)
        chrome.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        chrome.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=media, features=[dict(name='prefers-color-scheme', value=theme)]))
    yield change
    chrome.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    chrome.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='', features=[]))

def test_every_page_loads_without_an_error(site, chrome):
    at,out = site
    for p in pages(out):
        chrome.get(f'{at}/{p}')
        bad = [e['message'] for e in chrome.get_log('browser') if e['level']=='SEVERE']
        assert not bad, (p,bad)
        assert chrome.find_element('tag name','h1').text.strip()
        broken = chrome.execute_script("return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0,80))")
        assert not broken, (p,broken)
        assert not chrome.execute_script("return [...document.images].filter(i => !i.alt).length"), f'{p}: a figure without a text'

def test_internal_links_lead_somewhere(site, chrome):
    at,out = site
    ids,links = {},{}
    for p in pages(out):
        chrome.get(f'{at}/{p}')
        ids[p] = set(chrome.execute_script("return [...document.querySelectorAll('[id],a[name]')].map(e => e.id || e.name)"))
        links[p] = chrome.execute_script("return [...document.querySelectorAll('a[href]')].map(a => a.href)")
    dead = []
    for p,hrefs in links.items():
        for h in hrefs:
            if not h.startswith(at) or p in ('site.html','markup.html'): continue   # which show parts of made-up pages
            path,frag = urldefrag(h[len(at):].lstrip('/'))
            path = unquote(path).removeprefix('mils/') or 'index.html'         # 404 names pages by their whole address
            if path.endswith('/'): path += 'index.html'
            if not (out/path).exists() or frag and path in ids and unquote(frag) not in ids[path]: dead.append((p,h[len(at):]))
    assert not dead

def test_a_table_sorts(site, chrome):
    at,_ = site
    chrome.get(f'{at}/report/task-a.html')
    table = "const t = document.querySelector('#tbl-arms table');"
    column = lambda: [float(v) for v in chrome.execute_script(table+"return [...t.tBodies[0].rows].map(r => r.cells[1].textContent)")]
    click = lambda: chrome.execute_script(table+"t.querySelectorAll('th[aria-sort] button')[1].click()")
    before = column()
    click(); up = column()
    click(); down = column()
    assert up==sorted(before) and down==up[::-1]!=up

def test_search_finds_what_pages_show(site, chrome):
    at,_ = site
    def first(words):
        box = chrome.find_element('id','search-box')
        box.send_keys(Keys.ESCAPE, words)
        status = chrome.find_element('css selector','search [role=status]')
        WebDriverWait(chrome, 20).until(lambda _: 'found' in status.get_attribute('textContent'))
        links = chrome.find_elements('css selector','#found a')
        return [a.get_attribute('href').removeprefix(f'{at}/') for a in links]
    for start in ('index.html','report/task-a.html'):
        chrome.get(f'{at}/{start}')
        chrome.find_element('tag name','body').send_keys('/')
        assert chrome.execute_script("return document.activeElement.id")=='search-box'
        assert 'report/task-a.html#what-is-kept-and-of-what' in first('own retention')[:3]     # after the glossary
        assert any(o.startswith('report/networks.html') for o in first('resnest4'))
        assert any(o.startswith('report/task-b.html') for o in first('ResNeSt-4'))
        assert any(o.startswith('report/') for o in first('muon'))
        assert first('What remains open')[0].startswith('report/')
        assert first('convert')[0]=='channels.html#convert' and first('DynamicConv2d')[0]=='layer.html#dynamicconv2d'
        assert first('own zebra retention')==[] and 'nothing found' in chrome.find_element('id','found').text
    hits = first('DynamicConv2d')
    for key in (Keys.DOWN, Keys.DOWN, Keys.UP): chrome.switch_to.active_element.send_keys(key)
    assert chrome.switch_to.active_element.get_attribute('href')==f'{at}/{hits[0]}'
    chrome.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(chrome, 10).until(lambda d: d.current_url==f'{at}/layer.html#dynamicconv2d')

def test_source_and_colab(site, chrome):
    at,_ = site
    chrome.get(f'{at}/channels.html')
    links = [a.get_attribute('href') for a in chrome.find_elements('css selector','.toc-actions a')]
    assert links==[f'https://{o}/mils-lab/mils/blob/main/nbs/02d_channels.ipynb' for o in ('github.com','colab.research.google.com/github')]

CONTRAST = '''
const parse = c => {
  const m = c.match(/[\\d.]+/g).map(Number), scale = c.startsWith('color(srgb') ? 255 : 1
  return [m[0]*scale, m[1]*scale, m[2]*scale, m[3] ?? 1] }
const linear = v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4
const lum = ([r,g,b]) => .2126*linear(r)+.7152*linear(g)+.0722*linear(b)
const over = (a,b) => [0,1,2].map(i => a[i]*a[3]+b[i]*(1-a[3])).concat(1)
const ground = e => {
  const stack = [], dark = getComputedStyle(document.documentElement).colorScheme == 'dark'
  for (; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor))
  return stack.reverse().reduce((b,a) => over(a,b), dark ? [18,18,18,1] : [255,255,255,1]) }
const bad = []
for (const e of document.querySelectorAll('body *')) {
  const says = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())
  if (!says || !e.offsetParent || ['SCRIPT','STYLE'].includes(e.tagName)) continue
  const s = getComputedStyle(e), b = ground(e), f = over(parse(s.color), b), [x,y] = [lum(f),lum(b)].sort((p,q) => q-p)
  const need = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.6 && s.fontWeight >= 600) ? 3 : 4.5
  if ((x+.05)/(y+.05) < need) bad.push([e.tagName, e.className, e.textContent.trim().slice(0,30), ((x+.05)/(y+.05)).toFixed(2)])
}
return bad.slice(0,8)'''

DARK = "const m = getComputedStyle(document.body).color.match(/[\\d.]+/g).map(Number); return m[0]+m[1]+m[2] > 380"

@pytest.mark.parametrize('theme', ['light','dark'])
def test_text_stands_out(site, chrome, theme):
    "Contrast of at least 4.5, or 3 for large text (WCAG 2.2, level AA)"
    at,_ = site
    report = [f'report/{n}.html' for n in ('index','task-a','task-b','statistics','audit')]
    for p in ('index.html', *report, 'core.html', 'channels.html'):
        chrome.get(f'{at}/{p}')
        for _ in range(2):
            dark = chrome.execute_script(DARK)
            if dark==(theme=='dark'): break
            chrome.find_element('id','theme').click()
        assert dark==(theme=='dark'), p
        assert not (bad := chrome.execute_script(CONTRAST)), (p,theme,bad)

def test_live_page(site, chrome):
    "The network with a mask and the folded one agree in the browser, for every channel set"
    at,out = site
    if not (out/'report'/'live'/'ort').exists(): pytest.skip('onnxruntime-web could not be fetched')
    about = json.loads((out/'report'/'live'/'live.json').read_text())
    chrome.get(f'{at}/report/live.html')
    state = lambda: chrome.execute_script("return document.getElementById('live').dataset.state")
    wait = lambda s: WebDriverWait(chrome, 60).until(lambda d: state()==s, f'no prediction for {s}')
    wait('RGB')
    said = lambda: chrome.find_element('css selector','#live [role=status]').text
    middle = "c => [...c.getContext('2d').getImageData(16,16,1,1).data]"
    shown = lambda: chrome.execute_script(f"return [...document.querySelectorAll('#live canvas')].map({middle})")
    boxes = dict(zip('RGB', chrome.find_elements('css selector','#live input')))
    right = {}
    for s in ('RGB','RG','R','RB','B','GB','G'):
        for c in sorted('RGB', key=lambda c: c not in s): boxes[c].is_selected()==(c in s) or boxes[c].click()
        wait(s)
        assert float(re.search(r'folded network ([\d.e+-]+)', said())[1])<1e-4
        right[s] = int(re.search(r'(\d+) of', said())[1])
        assert all(p[k]==0 for p in shown() for k,c in enumerate('RGB') if c not in s)
    assert boxes['G'].is_selected() and not boxes['G'].is_enabled()                  # one channel always stays on
    assert right['RGB']>.7*len(about['pictures']) and right['RGB']>=max(right.values())
    assert not [e for e in chrome.get_log('browser') if e['level']=='SEVERE']

def test_a_picture_of_ones_own(site, chrome, tmp_path):
    "What the browser says of a made picture is what the network says in Python; absent channels are filled in; nothing is sent"
    import numpy as np,onnxruntime
    from PIL import Image
    at,out = site
    live = out/'report'/'live'
    if not (live/'ort').exists(): pytest.skip('onnxruntime-web could not be fetched')
    about = json.loads((live/'photos.json').read_text())
    n,classes = about['size'],about['classes']
    y,x = np.mgrid[:n,:n]/(n-1)
    made = (255*np.stack([.3+.7*x, .2+.6*y, .5*(x+y)], -1)).astype('uint8')
    Image.fromarray(made).save(tmp_path/'made.png')
    session = onnxruntime.InferenceSession(live/'photos.onnx')
    def best(mask):
        z = ((made/255-about['mean'])/about['std']).transpose(2,0,1)[None].astype('float32')
        return classes[session.run(None, dict(x=z, mask=np.array([mask])))[0][0].argmax()]
    chrome.get(f'{at}/report/live.html')
    state = lambda: chrome.execute_script("return document.getElementById('photos').dataset.state ?? ''")
    wait = lambda s: WebDriverWait(chrome, 60).until(lambda d: state().startswith(s), f'no prediction for {s}')
    wait('ready')
    chrome.find_element('css selector','#photos [type=file]').send_keys(str(tmp_path/'made.png'))
    wait('RGB ')
    listed = lambda: [e.text for e in chrome.find_elements('css selector','#photos li')]
    pixel = "c => [...c.getContext('2d').getImageData(40,20,1,1).data].slice(0,3)"
    drawn = lambda: chrome.execute_script(f"return [...document.querySelectorAll('#photos canvas')].map({pixel})")
    assert len(listed())==5 and listed()[0].startswith(best([True]*3))
    given,seen = drawn()
    assert given==made[20,40].tolist() and max(abs(a-b) for a,b in zip(given, seen))<=1
    boxes = chrome.find_elements('css selector','#photos [type=checkbox]')
    boxes[2].click()
    wait('RG ')
    given,seen = drawn()
    assert listed()[0].startswith(best([True,True,False]))
    said = chrome.find_element('css selector','#photos [role=status]').text
    assert said.endswith(f"trained for {about['epochs']} epochs.")
    assert given==[*made[20,40,:2].tolist(),0] and seen[2]>20                        # blue is guessed from red and green
    sent = chrome.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert all(r.startswith((at,'data:','blob:')) for r in sent)
    assert sum((live/f).stat().st_size for f in ('photos.onnx','photos.json'))<2_000_000

def overflowing(chrome):
    return chrome.execute_script("return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth-e.clientWidth)")

@pytest.mark.parametrize('how', [dict(width=1280), dict(width=1920), dict(width=700, media='print')], ids=['laptop','desktop','paper'])
def test_tables_fit(site, chrome, screen, how):
    "No column is out of sight, on a screen or on paper"
    at,out = site
    screen(**how)
    for p in of_report(out):
        chrome.get(f'{at}/{p}')
        assert max(overflowing(chrome), default=0)<=1, p

def test_pages_fit_on_a_phone(site, chrome, screen):
    "Only what shows that it scrolls is wider than the screen, and a keyboard reaches it"
    at,out = site
    screen(width=390)
    for p in of_report(out):
        chrome.get(f'{at}/{p}')
        wide = chrome.execute_script("return document.documentElement.scrollWidth-document.documentElement.clientWidth")
        assert wide<=1, (p,wide)
        WebDriverWait(chrome, 10).until(lambda d: not d.execute_script("""
            return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth+1)
                .filter(e => e.checkVisibility())
                .filter(e => e.tabIndex != 0 || !getComputedStyle(e).backgroundImage.includes('gradient')).length"""), p)

@pytest.mark.parametrize('width', [1280,390])
def test_figures_keep_their_size(site, chrome, screen, width):
    "So letters stay as large as `page_style` makes them, which is no smaller than a caption's"
    at,out = site
    screen(width=width)
    for p in of_report(out):
        chrome.get(f'{at}/{p}')
        small = chrome.execute_script("""return [...document.querySelectorAll('main img')]
            .map(i => [i.clientWidth, i.naturalWidth]).filter(([now,made]) => now < made-1)""")
        assert not small, (p,small)

def test_answers_are_on_the_first_screen(site, chrome, screen):
    "Both questions, and the table that answers them"
    at,_ = site
    screen()
    for p in ('index.html','report/index.html'):
        chrome.get(f'{at}/{p}')
        end = chrome.execute_script("return document.querySelector('main table').getBoundingClientRect().bottom")
        assert 300<end<=900, (p,end)

def test_heads_of_tables(site, chrome):
    "One row of heads where pandas writes two, and no head that says nothing"
    at,out = site
    for p in of_report(out):
        chrome.get(f'{at}/{p}')
        bad = chrome.execute_script("""return [...document.querySelectorAll('main table')].filter(t =>
            [...t.querySelectorAll('th')].some(h => !h.textContent.trim()) ||
            t.tHead && t.tHead.rows.length > 1 && ![...t.tHead.rows[0].cells].some(c => c.colSpan > 1))
            .map(t => t.outerHTML.slice(0,300))""")
        assert not bad, (p,bad)

RULES = dict(runOnly=['wcag2a','wcag2aa','wcag21a','wcag21aa','wcag22aa','best-practice'], resultTypes=['violations'])

@pytest.mark.parametrize('theme', ['light','dark'])
def test_axe_finds_no_violation(site, chrome, screen, theme):
    "On any page; contrast of code, which has thousands of pieces, is looked at in `test_text_stands_out`"
    at,out = site
    try: axe = (fetch_npm('axe-core', '4.14.1', ['axe.min.js'])/'axe.min.js').read_text()
    except OSError as e: pytest.skip(str(e))
    chrome.set_script_timeout(120)
    found = []
    for width,some in ((1280,pages(out)), (390,of_report(out))):
        screen(width, theme)
        for p in some:
            chrome.get(f'{at}/{p}')
            asked = json.dumps(dict(RULES, rules={'color-contrast': {'enabled': p.startswith('report/')}}))
            chrome.execute_script(axe)
            found += [(p,width,*v) for v in chrome.execute_async_script(f"""const done = arguments[0]; axe.run(document, {asked}).then(r =>
                done(r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0,120)])))""")]
            twice = chrome.execute_script("""const ids = [...document.querySelectorAll('[id]')].map(e => e.id)
                return ids.filter((o,i) => ids.indexOf(o) != i)""")
            if twice: found.append((p,width,'ids twice',twice))
    assert not found, found[:10]

def test_a_keyboard_goes_through_a_page(site, chrome, screen):
    "A skip link first, few stops before the text, groups of the menu that open, previous and next"
    at,_ = site
    screen()
    chrome.get(f'{at}/report/task-b.html')
    focus = "const e = document.activeElement; "
    def tab(): chrome.switch_to.active_element.send_keys(Keys.TAB)
    tab()
    assert chrome.execute_script(focus+"return e.className")=='skip'
    stops = 0
    while not chrome.execute_script(focus+"return !!e.closest('main')"):
        tab()
        stops += 1
        assert stops<30
        ring = chrome.execute_script(focus+"return [getComputedStyle(e).outlineStyle, e.getBoundingClientRect().width]")
        assert ring[0]!='none' and ring[1]>0, chrome.execute_script(focus+"return e.outerHTML.slice(0,200)")
    library = next(e for e in chrome.find_elements('css selector','nav.site summary') if e.text=='Library')
    library.send_keys(Keys.ENTER)
    assert library.find_element('xpath','..').get_attribute('open')
    chrome.get(f'{at}/report/task-b.html')
    tab()
    chrome.switch_to.active_element.send_keys(Keys.ENTER)
    tab()
    assert chrome.execute_script(focus+"return !!e.closest('main')")
    chrome.get(f'{at}/index.html')
    visited = []
    while more := chrome.find_elements('css selector','nav.turn [rel=next]'):
        more[0].send_keys(Keys.ENTER)
        WebDriverWait(chrome, 10).until(lambda d: d.current_url not in visited)
        visited.append(chrome.current_url)
    menu = chrome.execute_script("return [...document.querySelectorAll('nav.site a')].map(a => a.href)")
    assert [f'{at}/index.html',*visited]==menu

def test_contents_on_a_phone(site, chrome, screen):
    at,_ = site
    screen(width=390)
    chrome.get(f'{at}/report/task-b.html')
    chrome.find_element('css selector','nav.toc summary').click()
    link = chrome.find_elements('css selector','nav.toc a[href^="#"]')[2]
    anchor = link.get_attribute('href')
    link.click()
    assert chrome.current_url==anchor
    chrome.find_element('css selector','label.menu').click()
    assert chrome.find_element('css selector','nav.site summary').is_displayed()

def test_a_page_for_what_is_not_found(site, chrome):
    at,_ = site
    chrome.get(f'{at}/mils/no/such/place.html')
    assert 'no such page' in chrome.find_element('tag name','h1').text
    assert chrome.execute_script("return getComputedStyle(document.body).display")=='grid'           # its style sheet was found
    chrome.find_element('css selector','main a').click()
    assert chrome.current_url==f'{at}/mils/index.html'
    chrome.get_log('browser')                                                       # the 404 itself

def test_what_is_shown_of_a_page_elsewhere(site):
    "Title, description and a picture that exists"
    at,out = site
    for p in pages(out):
        head = BeautifulSoup((out/p).read_text(), 'html.parser').head
        meta = {o.get('name') or o.get('property'):o.get('content') for o in head.find_all('meta')}
        assert meta['description'] and meta['og:description'] and meta['og:title'], p
        assert (out/meta['og:image'].removeprefix('https://mils-lab.github.io/mils/')).is_file(), p
        assert head.find('link', rel='icon')['href'].endswith('icon.svg')
