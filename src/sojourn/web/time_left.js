(()=>{let s=document.currentScript.dataset,n=x=>document.createElement(x),d=n("dialog"),p=n("p"),b=n("button"),c=n("button"),u=s.url,live,t,h,
show=(k,m,y)=>{p.textContent=m;b.hidden=!y;if(h!=k&&!d.open)d.showModal();h=k},
look=()=>{let w=60;fetch(u).then(r=>r.json()).then(({remaining:r,warn,stay})=>{
if(r>0){live=1;if(r>warn){d.close();h=0;w=r-warn}else{show(1,s.warn.replace("{}",Math.ceil(r/60)),stay);w=Math.min(r,15)}}
else{if(live){h=0;show(2,s.over)}live=w=0}}).catch(()=>{}).then(()=>{clearTimeout(t);if(w)t=setTimeout(look,Math.min(w,9e5)*1e3)})};
d.setAttribute("role","alertdialog");p.id="time-left";d.setAttribute("aria-labelledby",p.id);
b.textContent=s.stay;c.textContent=s.close;c.onclick=()=>d.close();
b.onclick=()=>fetch(u,{method:"POST",headers:{"X-CSRF-Token":s.csrf}}).then(look,look);
d.append(p,b,c);document.body.append(d);document.addEventListener("visibilitychange",look);look()})()
